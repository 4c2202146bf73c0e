"""Images that are not for the model: thumbnails, pixels to compare, posters as people send them."""
