"""HTML pages and pictures shared by the report and the quality page."""
