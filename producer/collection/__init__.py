"""The collection: posters found on disk, and what the catalogue says of them."""
