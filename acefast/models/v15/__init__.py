"""ACE-Step 1.5: turbo, sft, base and XL."""
