"""What a person reads on screen: lines and tables, help, numbers, short names."""
