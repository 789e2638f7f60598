"""Views of a run: a page for people, JSON, JUnit, Markdown and annotations for machines. They judge nothing."""
