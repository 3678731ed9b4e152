package flags

import "testing"

func TestSize(t *testing.T) {
	tests := []struct {
		text string
		want Size // 0: an error
	}{
		{"4096", 4096}, {"1K", 1 << 10}, {"512M", 512 << 20}, {"512m", 512 << 20}, {"512MiB", 512 << 20},
		{"2G", 2 << 30}, {"1T", 1 << 40},
		{"", 0}, {"M", 0}, {"-1M", 0}, {"1.5G", 0}, {"1X", 0}, {"1MM", 0}, {"0x10", 0},
		{"99999999999999999999", 0}, {"18446744073709551615T", 0}, {"16777216T", 0},
	}
	for _, tt := range tests {
		var s Size
		err := s.Set(tt.text)
		if (err != nil) != (tt.want == 0) || err == nil && s != tt.want {
			t.Errorf("Set(%q) = %d, %v, want %d", tt.text, s, err, tt.want)
		}
	}
	for s, want := range map[Size]string{0: "0", 1000: "1000", 1 << 10: "1K", 512 << 20: "512M", 1536 << 20: "1536M", 1 << 40: "1T"} {
		if s.String() != want {
			t.Errorf("%d is written %q, want %q", s, s.String(), want)
		}
		var back Size
		if err := back.Set(s.String()); err != nil || back != s {
			t.Errorf("%d comes back as %d, %v", s, back, err)
		}
	}
}
