"""Training: settings are checked, objects are built, and a LightningModule of the regime is fitted."""
