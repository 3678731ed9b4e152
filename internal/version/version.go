// Package version says which godwit this is.
package version

import "runtime/debug"

// Version is set by the linker (see Makefile).
var Version string

// String is the version that the build was given, else what Go recorded of the
// module or the checkout.
func String() string {
	if Version != "" {
		return Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return info.Main.Version
}
