"""The coordinator: rounds, admission, releases. It never sees a share and never imports what computes on them."""
