// Command godwit-net is the network stack of one guest with user networking.
// godwit starts it, and it ends with godwit.
package main

import (
	"fmt"
	"os"

	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
	"github.com/godwit-vmm/godwit/internal/usernet"
)

func main() {
	err := usernet.Limit()
	if err == nil {
		err = usernet.Serve(user.Descriptor)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "godwit-net:", err)
		os.Exit(1)
	}
}
