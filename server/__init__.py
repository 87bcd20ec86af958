"""The federation's side: it adds up what sites release and recomputes what that cost."""
