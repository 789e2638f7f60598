/* Signatures only, transcribed from the published API of org.pytorch:executorch-android, so that the adapter can be
   compiled where that library cannot be had. Not the real thing: nothing here runs, and no phone build sees it. */
package org.pytorch.executorch;

public abstract class Tensor {
    Tensor() {}

    public static native Tensor fromBlobUnsigned(byte[] data, long[] shape);

    public static native Tensor fromBlob(byte[] data, long[] shape);

    public static native Tensor fromBlob(int[] data, long[] shape);

    public static native Tensor fromBlob(float[] data, long[] shape);

    public static native Tensor fromBlob(long[] data, long[] shape);

    public static native Tensor fromBlob(double[] data, long[] shape);

    public native long[] shape();

    public abstract DType dtype();

    public native byte[] getDataAsByteArray();

    public native byte[] getDataAsUnsignedByteArray();

    public native int[] getDataAsIntArray();

    public native float[] getDataAsFloatArray();

    public native long[] getDataAsLongArray();

    public native double[] getDataAsDoubleArray();
}
