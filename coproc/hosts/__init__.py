"""Several hosts on one machine: namespaces with a network and memory of their own, and shaped links between them."""
