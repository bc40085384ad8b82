#!/bin/busybox sh
# The first program of a guest. From the kernel's command line it has `address`, the guest's own in CIDR form, and, where a
# host asks for lines of commands, `agent`, the serial port that they come from; else there is a shell on the console.
export PATH=/bin
/bin/busybox --install -s /bin 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1

while read -r module; do
    insmod "/modules/$module"
done </modules/order

# Nothing is sent that nobody asked for.
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip addr add "$address" dev eth0
    ip link set eth0 up
fi

if [ -z "$agent" ]; then
    echo "This guest is $address. \`poweroff -f\` ends it."
    exec setsid cttyhack sh
fi

stty -F "$agent" raw -echo
exec <"$agent" >"$agent"
# What the port carried before is no line of ours.
echo
echo "hs ready"
while read -r id command; do
    {
        (eval "$command") </dev/null 2>&1
        # On a line of its own, whatever the command's output ended with.
        printf '\n%s\n' "exit code $?"
    } | while IFS= read -r line; do echo "hs $id|$line"; done
done
