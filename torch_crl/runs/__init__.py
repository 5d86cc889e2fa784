"""What a run leaves on disk: its directory, who may write there, and files read with care."""
