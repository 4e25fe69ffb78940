"""Programs that report by events of their own instead of by spans; each is a folder."""
