/* Signatures only, transcribed from the published API of org.pytorch:executorch-android, so that the adapter can be
   compiled where that library cannot be had. Not the real thing: nothing here runs, and no phone build sees it. */
package org.pytorch.executorch;

public class Module {
    public static final int LOAD_MODE_FILE = 0;

    private Module() {}

    public static native Module load(String modelPath, int loadMode, int numThreads);

    public native EValue[] forward(EValue... inputs);

    public native void destroy();
}
