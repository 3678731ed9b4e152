package main

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/godwit-vmm/godwit/guest/agent"
)

// TestLost says in one sentence why a command has ended that did not end by itself.
func TestLost(t *testing.T) {
	startGuest(t, "runs")
	broken := fmt.Errorf("put /x: %w", fmt.Errorf("%w: %w", agent.ErrClosed, io.EOF))
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"runs", &agent.EndingError{How: agent.Reboot}, "guest runs reboots, which ended the copy"},
		{"runs", agent.ErrClosed, "the connection to guest runs is gone, and with it the copy"},
		{"runs", broken, "the connection to guest runs is gone, and with it the copy: put /x: agent connection closed: EOF"},
		{"ended", broken, "guest ended has ended, and with it the copy"},
		{"runs", errors.New("no such file"), "no such file"},
	}
	for _, test := range tests {
		if got := lost(test.name, "the copy", test.err).Error(); got != test.want {
			t.Errorf("%s, %v: %q, want %q", test.name, test.err, got, test.want)
		}
	}
}
