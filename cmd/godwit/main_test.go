package main

import "testing"

// TestCommands: each command goes by its name, and a root made for one has it.
func TestCommands(t *testing.T) {
	for _, c := range commands {
		if got := c.make().Name(); got != c.name {
			t.Errorf("the command %s calls itself %s", c.name, got)
		}
		one := newRoot(c.name, "--help")
		if all := one.Commands(); len(all) != 1 || all[0].Name() != c.name {
			t.Errorf("the root for %s has %d commands", c.name, len(all))
		}
	}
	for _, args := range [][]string{nil, {"--help"}, {"help", "boot"}, {"nonsense"}, {"__complete", "boot", ""}} {
		if n := len(newRoot(args...).Commands()); n != len(commands) {
			t.Errorf("%q: %d commands, want all %d", args, n, len(commands))
		}
	}
}
