"""The torch host: a torch.fx GraphModule from torch.export."""
