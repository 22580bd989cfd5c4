"""What the tests share: models, images, tars, sources and processes."""
