"""What the parties vouch for, and how anybody checks it: certificates of rounds and the log that holds them all."""
