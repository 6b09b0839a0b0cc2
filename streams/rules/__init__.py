"""What the shop says may be shown: rules as written, as they stand, as a policy gets them."""
