"""Plain configs: types of their keys, what differs between two, no secrets in them."""
