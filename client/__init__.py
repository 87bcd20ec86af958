"""One hospital's side: what touches a patient happens here, and is charged first."""
