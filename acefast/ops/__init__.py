"""The ops: what each means, its checks, and which backend runs it."""
