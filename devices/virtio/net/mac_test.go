package net

import (
	"errors"
	"testing"
)

func TestParseMAC(t *testing.T) {
	for _, text := range []string{"02:12:34:56:78:9a", "02-12-34-56-78-9A"} {
		if m, err := ParseMAC(text); err != nil || m != (MAC{2, 0x12, 0x34, 0x56, 0x78, 0x9a}) {
			t.Errorf("ParseMAC(%q) = %v, %v", text, m, err)
		}
	}
	for text, want := range map[string]error{
		"": nil, "02:12:34:56:78": nil, "02:12:34:56:78:9a:bc:de": nil, "hello": nil,
		"00:00:00:00:00:00": ErrMAC, "ff:ff:ff:ff:ff:ff": ErrMAC, "01:00:5e:00:00:01": ErrMAC,
	} {
		if _, err := ParseMAC(text); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("ParseMAC(%q): %v, want an error", text, err)
		}
	}
}

func TestDefaultMAC(t *testing.T) {
	seen := make(map[MAC]bool)
	for _, name := range []string{"", "a", "b", "a0"} {
		for index := range 20 {
			m := DefaultMAC(name, index)
			if seen[m] || m.check() != nil || m[0]&macLocal == 0 || m != DefaultMAC(name, index) {
				t.Errorf("DefaultMAC(%q, %d) = %v", name, index, m)
			}
			seen[m] = true
		}
	}
	// It stays the same from release to release: guests configure by it.
	if got, want := DefaultMAC("godwit", 0).String(), "12:5f:93:46:ee:1f"; got != want {
		t.Errorf("DefaultMAC = %s, want %s", got, want)
	}
}
