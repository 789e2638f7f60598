/* Signatures only, transcribed from the published API of org.pytorch:executorch-android, so that the adapter can be
   compiled where that library cannot be had. Not the real thing: nothing here runs, and no phone build sees it. */
package org.pytorch.executorch;

public class EValue {
    private EValue() {}

    public static native EValue from(Tensor tensor);

    public native Tensor toTensor();
}
