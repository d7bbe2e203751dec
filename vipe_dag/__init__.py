"""vipe-dag: camera poses, intrinsics and dense depth from any video, kept as data."""
