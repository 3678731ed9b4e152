// First is the init of a disk image for tests: it says what it finds, and powers
// off.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

func main() {
	fmt.Printf("first: pid %d, %q, HOME=%s\n", os.Getpid(), os.Args, os.Getenv("HOME"))
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		fmt.Println("first:", err)
	}
	for line := range strings.Lines(string(mounts)) {
		fmt.Print("first: mount ", line)
	}
	entries, err := os.ReadDir("/run")
	fmt.Printf("first: %d entries in /run, %v\n", len(entries), err)
	modprobe, err := os.ReadFile("/proc/sys/kernel/modprobe")
	fmt.Printf("first: %s %v\n", strings.TrimSpace(string(modprobe)), err)
	syscall.Sync()
	fmt.Println("first:", syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF))
}
