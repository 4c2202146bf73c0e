"""Images: bytes to RGB uint8 at the model's size, or the reason why not."""
