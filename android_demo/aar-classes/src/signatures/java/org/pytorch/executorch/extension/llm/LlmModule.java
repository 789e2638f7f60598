/* Signatures only, transcribed from the published API of org.pytorch:executorch-android, so that the adapter can be
   compiled where that library cannot be had. Not the real thing: nothing here runs, and no phone build sees it. */
package org.pytorch.executorch.extension.llm;

public class LlmModule implements java.io.Closeable {
    public LlmModule(String modulePath, String tokenizerPath, float temperature) {
        throw new UnsatisfiedLinkError("signatures only");
    }

    public native void generate(String prompt, int seqLen, LlmCallback llmCallback, boolean echo);

    public native void stop();

    @Override
    public native void close();
}
