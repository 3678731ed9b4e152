package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGodwitPath(t *testing.T) {
	t.Setenv("GODWIT", "/opt/godwit")
	if program, err := godwit(); err != nil || program != "/opt/godwit" {
		t.Errorf("%q, %v", program, err)
	}
	t.Setenv("GODWIT", "")
	// The test program has none beside it.
	if program, err := godwit(); err == nil || !strings.Contains(err.Error(), "GODWIT") {
		t.Errorf("%q, %v", program, err)
	}
}

func TestCommandLine(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	t.Setenv("GODWIT_CACHE", t.TempDir())
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"cp", file, file}, "HOST:PATH"},
		{[]string{"cp", "h1:" + file, "h2:" + file}, "HOST:PATH"},
		{[]string{"cp", file, "h1:/tmp/"}, "not up"},
		{[]string{"exec", "h1", "--", "true"}, "godwit-lab up"},
		{[]string{"exec", "x/h1", "true"}, "--name x"},
		{[]string{"exec", "../h1", "true"}, "lab name"},
		{[]string{"down", "--name", "x"}, "not up"},
		{[]string{"run", "--", "version"}, "make guest"},
		{[]string{"run", "--memory", "x", "--", "version"}, "512M"},
		{[]string{"nosuch"}, "unknown command"},
	}
	for _, test := range tests {
		root := newRoot()
		root.SetArgs(test.args)
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: got %v, want something with %q", test.args, err, test.want)
		}
	}
	root := newRoot()
	root.SetArgs([]string{"down", "--all"})
	if err := root.Execute(); err != nil {
		t.Errorf("down --all with none up: %v", err)
	}
}

// Every command that a user sees has an example in its help.
func TestHelpHasExamples(t *testing.T) {
	for _, c := range newRoot().Commands() {
		if !c.Hidden && c.Example == "" {
			t.Errorf("%s has no example", c.Name())
		}
	}
}
