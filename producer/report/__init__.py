"""HTML reports with thumbnails."""
