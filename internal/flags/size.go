// Package flags has the kinds of command line flags that godwit's commands share.
package flags

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a flag for an amount of memory in bytes: a number, and K, M, G or T
// for powers of 1024. It is a pflag.Value.
type Size uint64

// Set parses what the user gave.
func (s *Size) Set(text string) error {
	number, unit := text, uint64(1)
	if i := strings.IndexAny(text, "kKmMgGtT"); i >= 0 {
		number = text[:i]
		unit = 1 << (10 * (1 + strings.Index("kmgt", strings.ToLower(text[i:i+1]))))
		switch strings.ToLower(text[i+1:]) {
		case "", "b", "ib":
		default:
			return fmt.Errorf("%q is not a size: want a number with K, M, G or T, such as 512M", text)
		}
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return fmt.Errorf("%q is not a size: want a number with K, M, G or T, such as 512M", text)
	}
	if n > math.MaxUint64/unit {
		return fmt.Errorf("%q is too large", text)
	}
	*s = Size(n * unit)
	return nil
}

// String is the shortest way to write the size.
func (s *Size) String() string {
	n, unit := uint64(*s), ""
	for _, u := range []string{"K", "M", "G", "T"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, u
	}
	return strconv.FormatUint(n, 10) + unit
}

// Type is what help calls the value.
func (s *Size) Type() string { return "SIZE" }
