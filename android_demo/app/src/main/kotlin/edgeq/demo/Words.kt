package edgeq.demo

import android.content.res.Resources
import edgeq.store.Manifest
import edgeq.store.SelfTestReport
import edgeq.store.ota.Update
import edgeq.store.ota.Via
import java.util.Locale
import kotlin.math.roundToInt

/** What the screen says, in the user's language. */
internal class Words(private val resources: Resources) {
    fun latency(timing: Timing?): String {
        timing ?: return resources.getString(R.string.no_latency)
        return resources.getString(R.string.latency, timing.lastMs, timing.count, timing.medianMs)
    }

    fun speed(written: Written?): String {
        val speed = written?.perSecond ?: return resources.getString(R.string.no_latency)
        return resources.getString(R.string.speed, written.pieces, speed)
    }

    fun facts(manifest: Manifest): String = resources.getString(
        R.string.facts,
        manifest.modelName,
        manifest.modelVersion,
        manifest.scheme,
        size(manifest.artifact.sizeBytes),
        "${manifest.runtime.name} ${manifest.runtime.exportedWith}",
        manifest.target.backend,
        manifest.digest.take(12),
    )

    fun verdict(screen: Screen): String {
        if (screen.updating) return resources.getString(R.string.updating)
        if (screen.busy) return resources.getString(R.string.working)
        if (screen.models.isEmpty() && screen.event == null) return resources.getString(R.string.no_model)
        return when (val event = screen.event) {
            null -> ""
            is Event.Checked -> event.report?.let { resources.getString(R.string.checked_new, report(it)) }
                ?: resources.getString(R.string.checked_before)
            is Event.Tested -> report(event.report)
            is Event.RolledBack -> event.rejected.let {
                resources.getString(R.string.rolled_back, it.version, it.reason.name, it.detail)
            }
            is Event.Refused -> resources.getString(R.string.refused, event.reason.name, event.detail)
            is Event.Imported -> resources.getString(R.string.imported, event.key.model, event.key.target)
            is Event.Updated -> updated(event.update)
        }
    }

    fun spokenPrediction(score: Score): String =
        resources.getString(R.string.prediction_spoken, score.label, (100 * score.share).roundToInt())

    private fun updated(update: Update): String {
        val clock = if (update.byClock) "" else resources.getString(R.string.no_clock)
        if (update.via == Via.NOTHING) {
            return resources.getString(R.string.up_to_date, update.release, update.modelVersion) + clock
        }
        val via = resources.getString(if (update.via == Via.PATCH) R.string.via_patch else R.string.via_full)
        val size = size(update.downloadedBytes)
        return resources.getString(R.string.updated, update.release, update.modelVersion, via, size) + clock
    }

    private fun report(report: SelfTestReport): String {
        val verdict = resources.getString(if (report.passed) R.string.passed else R.string.failed)
        if (report.finite && report.maxAbs == 0.0) return resources.getString(R.string.test_exact, report.samples, verdict)
        val sqnr = String.format(Locale.getDefault(), "%.1f", report.sqnrDb)
        val result = resources.getString(R.string.test_result, report.samples, report.maxAbs, sqnr, report.floorDb, verdict)
        return if (report.passed) result else "$result (${report.failure})"
    }

    /** MB is 10^6 bytes, as edgeq prints it. */
    private fun size(bytes: Long): String = when {
        bytes >= 1_000_000 -> String.format(Locale.getDefault(), "%.2f MB", bytes / 1e6)
        else -> String.format(Locale.getDefault(), "%.1f kB", bytes / 1e3)
    }
}
