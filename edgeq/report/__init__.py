"""Views of a run: an HTML page, text, JSON, JUnit, Markdown and annotations. They judge nothing."""
