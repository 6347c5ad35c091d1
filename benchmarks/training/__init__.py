"""What training towards pruning brings: experiments on digits (minutes) and on CIFAR-10 (hours, or a GPU)."""
