package edgeq.demo

import android.content.Context
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.graphics.Path
import android.util.AttributeSet
import android.view.MotionEvent
import android.view.View

/** A sheet of paper to draw on with a finger. White in the dark theme too: it is paper. */
class SketchView(context: Context, attributes: AttributeSet) : View(context, attributes) {
    var sketch = Sketch()
        set(value) {
            field = value
            invalidate()
        }

    /** Called when a stroke has ended. */
    var onDrawn: (Sketch) -> Unit = {}

    private val ink = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = Color.rgb(27, 94, 32)
        style = Paint.Style.STROKE
        strokeCap = Paint.Cap.ROUND
        strokeJoin = Paint.Join.ROUND
    }
    private val edge = Paint().apply {
        color = Color.GRAY
        style = Paint.Style.STROKE
    }
    private val path = Path()

    override fun onTouchEvent(event: MotionEvent): Boolean {
        when (event.actionMasked) {
            MotionEvent.ACTION_DOWN -> {
                parent.requestDisallowInterceptTouchEvent(true) // drawing is not scrolling
                sketch = sketch.begin(point(event.x, event.y))
            }
            MotionEvent.ACTION_MOVE -> {
                for (i in 0 until event.historySize) {
                    sketch = sketch.extend(point(event.getHistoricalX(i), event.getHistoricalY(i)))
                }
                sketch = sketch.extend(point(event.x, event.y))
            }
            MotionEvent.ACTION_UP -> performClick()
            MotionEvent.ACTION_CANCEL -> onDrawn(sketch)
            else -> return false
        }
        return true
    }

    override fun performClick(): Boolean {
        super.performClick()
        onDrawn(sketch)
        return true
    }

    private fun point(x: Float, y: Float) = Point((x / width).coerceIn(0f, 1f), (y / height).coerceIn(0f, 1f))

    override fun onDraw(canvas: Canvas) {
        canvas.drawColor(Color.WHITE)
        canvas.drawRect(0f, 0f, width - 1f, height - 1f, edge)
        ink.strokeWidth = width / 12f
        for (stroke in sketch.strokes) {
            path.rewind()
            stroke.forEachIndexed { index, point ->
                if (index == 0) path.moveTo(point.x * width, point.y * height)
                // a line to itself makes a dot
                path.lineTo(point.x * width, point.y * height)
            }
            canvas.drawPath(path, ink)
        }
    }
}
