/* Signatures only, transcribed from the published API of org.pytorch:executorch-android, so that the adapter can be
   compiled where that library cannot be had. Not the real thing: nothing here runs, and no phone build sees it. */
package org.pytorch.executorch.extension.llm;

public interface LlmCallback {
    void onResult(String result);

    default void onStats(String stats) {}

    default void onError(int errorCode, String message) {}
}
