"""Writers of other programs' formats. Each module takes plain arrays and knows nothing of the store."""
