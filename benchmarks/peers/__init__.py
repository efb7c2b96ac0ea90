"""One module for each library, with a class ``Peer``; each is imported only in a process of its own."""
