"""What a run is about to do, told before its first step; what cannot work has been refused by then."""
