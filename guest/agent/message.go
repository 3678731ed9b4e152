// Package agent runs commands and copies files in a guest from the outside.
//
// A Server in the guest and a Client on the host speak a small protocol over
// any byte stream: a serial port, a virtio console port, vsock, a socket.
// After a preamble that finds its place in whatever else came over the line,
// the stream is a sequence of frames. Frames belong to sessions, of which many
// run at once; a session is one command with its standard streams, or one file
// on its way in or out. Each stream has a credit window, so that a reader that
// does not read holds up nothing but its own stream, and neither end ever
// holds more than the window in memory.
//
// Either end takes what the other says with distrust: sizes are bounded, and
// what breaks the protocol ends the connection.
package agent

import (
	"fmt"
	"io/fs"
)

// protocol is the version that Info carries. Ends of different versions do not
// talk.
const protocol = 1

// Info is what the server says of itself when a client connects: the guest is
// up.
type Info struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"`
	Hostname string `json:"hostname"`
	Kernel   string `json:"kernel"`
}

// Size of a terminal window in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// What a session can be for.
const (
	opExec    = "exec"
	opPut     = "put"
	opGet     = "get"
	opPutTree = "put-tree"
	opGetTree = "get-tree"
	opSetTime = "set-time"
	opReseed  = "reseed"
	opSetMAC  = "set-mac"
)

// request opens a session.
type request struct {
	Op   string      `json:"op"`
	Args []string    `json:"args,omitempty"`
	Env  []string    `json:"env,omitempty"`
	Dir  string      `json:"dir,omitempty"`
	TTY  *Size       `json:"tty,omitempty"`
	Path string      `json:"path,omitempty"`
	Mode fs.FileMode `json:"mode,omitempty"`
	// Follow and Owners are as in CopyOptions.
	Follow bool `json:"follow,omitempty"`
	Owners bool `json:"owners,omitempty"`
	// Time is in nanoseconds since 1970.
	Time int64 `json:"time,omitempty"`
	// Seed is random.
	Seed []byte `json:"seed,omitempty"`
}

// result ends a session.
type result struct {
	Exit
	Mode   fs.FileMode `json:"mode,omitempty"`
	Copied Copied      `json:"copied,omitzero"`
	Error  string      `json:"error,omitempty"`
	// Ending says that the end of the machine cut the command off.
	Ending Ending `json:"ending,omitempty"`
}

// Exit is how a command ended.
type Exit struct {
	// Code is the exit status: 127 if there is no such command, 126 if it
	// could not be started.
	Code int `json:"code,omitempty"`
	// Signal is the number of the signal that killed the command, or 0.
	Signal int `json:"signal,omitempty"`
}

// Status is the exit status as a shell has it: 128 and the signal for a
// command that was killed.
func (e Exit) Status() int {
	if e.Signal != 0 {
		return 128 + e.Signal
	}
	return e.Code
}

// String says how the command ended.
func (e Exit) String() string {
	if e.Signal != 0 {
		return fmt.Sprintf("killed by signal %d", e.Signal)
	}
	return fmt.Sprintf("exit status %d", e.Code)
}
