package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestUnit(t *testing.T) {
	var b bytes.Buffer
	if err := writeUnit(&b); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"[Unit]\n", "[Service]\n", "\nExecStart=" + self + "\n", "[Install]\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// TestShutdown asks the init that is first in the PATH.
func TestShutdown(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for _, name := range []string{"poweroff", "reboot"} {
		script := "#!/bin/sh\necho " + name + " >> " + dir + "/asked\n"
		if err := os.WriteFile(dir+"/"+name, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, again := range []bool{false, true} {
		if err := shutdown(again); err != nil {
			t.Error(err)
		}
	}
	if b, err := os.ReadFile(dir + "/asked"); string(b) != "poweroff\nreboot\n" {
		t.Errorf("asked for %q, %v", b, err)
	}
	if err := os.Remove(dir + "/reboot"); err != nil {
		t.Fatal(err)
	}
	if err := shutdown(true); err == nil {
		t.Error("no error without a command for it")
	}
}
