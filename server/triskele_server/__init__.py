"""The servers of Triskele: coordinator, party, and the multi-party computation between the parties."""
