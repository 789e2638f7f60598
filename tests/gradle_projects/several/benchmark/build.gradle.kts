plugins { id("com.android.test") }
