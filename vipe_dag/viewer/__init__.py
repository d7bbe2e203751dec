"""A stored video in a browser, in three dimensions: `vipe-dag view`. Neither torch nor OpenCV is imported."""
