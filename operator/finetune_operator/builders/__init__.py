"""One file per child: plain data in, a manifest out. Children are created once and never applied again."""
