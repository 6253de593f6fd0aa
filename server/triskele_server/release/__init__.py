"""The words that a round opened, as they leave the process that computed them: under their mask unless the task's
release is public (`party.release`), with the parties' noise in them if the task asks for it."""
