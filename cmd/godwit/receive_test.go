package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestListener: without TLS nobody from outside can connect, unless the user wants it so.
func TestListener(t *testing.T) {
	const open = "without TLS whoever reaches this address could read and change the guest"
	for _, tt := range []struct {
		listen           string
		secure, insecure bool
		want             string // of the error, "" for none
	}{
		{"127.0.0.1:0", false, false, ""},
		{"127.8.9.1:0", false, false, ""},
		{"localhost:0", false, false, ""},
		{"unix:" + filepath.Join(t.TempDir(), "s"), false, false, ""},
		{"0.0.0.0:0", false, false, open},
		{":0", false, false, open},
		{"[::]:0", false, false, open},
		{"192.0.2.1:7000", false, false, open},
		{"[::ffff:192.0.2.1]:7000", false, false, open},
		{"0.0.0.0:0", true, false, ""},
		{"0.0.0.0:0", false, true, ""},
		{"7000", false, false, "want HOST:PORT or unix:PATH"},
		{"127.0.0.1:port", false, false, "want HOST:PORT or unix:PATH"},
		{"192.0.2.1:7000", true, false, "192.0.2.1:7000"}, // no address of this host
	} {
		o := receiveOptions{listen: tt.listen, insecure: tt.insecure}
		l, err := o.listener(tt.secure)
		if err == nil {
			l.Close()
		}
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("--listen %s, TLS %v, --insecure %v: %v, want %q", tt.listen, tt.secure, tt.insecure, err, tt.want)
		}
		if tt.want == open && !strings.Contains(err.Error(), "say --insecure") {
			t.Errorf("%v does not say what to do", err)
		}
	}
}
