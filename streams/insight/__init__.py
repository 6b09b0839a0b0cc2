"""For those who answer for what is shown: explanations, bias, worth and cost."""
