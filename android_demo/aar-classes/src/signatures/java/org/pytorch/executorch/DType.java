/* Signatures only, transcribed from the published API of org.pytorch:executorch-android, so that the adapter can be
   compiled where that library cannot be had. Not the real thing: nothing here runs, and no phone build sees it. */
package org.pytorch.executorch;

public enum DType {
    UINT8, INT8, INT16, INT32, INT64, HALF, FLOAT, DOUBLE, COMPLEX_HALF, COMPLEX_FLOAT, COMPLEX_DOUBLE, BOOL, QINT8,
    QUINT8, QINT32, BFLOAT16, QINT4X2, QINT2X4, BITS1X8, BITS2X4, BITS4X2, BITS8, BITS16
}
